"""The readable form of a staged site, in plain PyTorch: the specification that every kernel is held against.

A site's pre-activation is ``z = sum_i term_i + c``: the terms run over the input features (linear) or the input
channels (convolution), and ``c`` is what is known before any term is seen (bias, added residual). The head sums some
terms, the guard looks at that sum, the tail finishes what survived:

    partial = partial_linear(x, weight, 0, k)
    stopped = guard_calibrated(partial, constant, thresholds)
    y       = finish_linear_relu(x, weight, bias, residual, partial, stopped, k, "relu")

Everything here computes densely and masks: it is exact and differentiable, and saves nothing. Sums are at least
float32: half-precision operands are widened before they are multiplied, since a sum that was rounded to half precision
on the way would decide otherwise, and no float32 margin would cover that.
"""

from exprune_fx.ops.reference.coded import coded_conv as coded_conv
from exprune_fx.ops.reference.dominance import finish_argmax as finish_argmax
from exprune_fx.ops.reference.dominance import finish_topk as finish_topk
from exprune_fx.ops.reference.dominance import guard_dominance as guard_dominance
from exprune_fx.ops.reference.finish import finish_conv_relu as finish_conv_relu
from exprune_fx.ops.reference.finish import finish_linear_relu as finish_linear_relu
from exprune_fx.ops.reference.finish import gated_linear as gated_linear
from exprune_fx.ops.reference.rules import guard_bound as guard_bound
from exprune_fx.ops.reference.rules import guard_calibrated as guard_calibrated
from exprune_fx.ops.reference.rules import guard_finite_population as guard_finite_population
from exprune_fx.ops.reference.rules import guard_pooled as guard_pooled
from exprune_fx.ops.reference.rules import guard_stats_test as guard_stats_test
from exprune_fx.ops.reference.rules import guard_threshold as guard_threshold
from exprune_fx.ops.reference.rules import input_norm_conv as input_norm_conv
from exprune_fx.ops.reference.rules import input_norm_linear as input_norm_linear
from exprune_fx.ops.reference.rules import window_largest as window_largest
from exprune_fx.ops.reference.sums import constant_term as constant_term
from exprune_fx.ops.reference.sums import partial_conv as partial_conv
from exprune_fx.ops.reference.sums import partial_linear as partial_linear
from exprune_fx.ops.reference.sums import principal_conv as principal_conv
from exprune_fx.ops.reference.sums import principal_linear as principal_linear
from exprune_fx.ops.reference.sums import squares_conv as squares_conv
from exprune_fx.ops.reference.sums import squares_linear as squares_linear
