"""``torch.compile(model, backend="exprune")``: stages the sites of what Dynamo traced, then compiles with Inductor."""

from exprune_fx.backend.entry import exprune as exprune
