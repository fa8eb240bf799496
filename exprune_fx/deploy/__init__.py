"""Staged graphs on their way out of this library: exported programs, AOTInductor packages, ONNX files.

What leaves either holds ATen operators only (from the readable form), or calls the fused operators (from the lowered
form), whose native library then goes with it; none of it needs this library's Python.
"""

from exprune_fx.deploy.aot_package import Package as Package
from exprune_fx.deploy.aot_package import export_package as export_package
from exprune_fx.deploy.onnx_file import export_onnx as export_onnx
from exprune_fx.deploy.program import export_program as export_program
