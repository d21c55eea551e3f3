"""Pruning a trained vision transformer: an owned dense copy, a plan of what is left of it, and the sliced weights.

    dense = prepare(model)                                     # refuses by name what it does not know; never changes the model
    scores = importance(dense, images, labels, directory=run).scores
    small = slice_weights(dense, replace(dense.plan, blocks=...), scores)
    save(small, "out"); load("out/arch.json", "out/model.safetensors")
"""

from nasvit.pruning.blocks import set_fused
from nasvit.pruning.dense import Dense, build, check, dense_plan, input_shape, layout_of, prepare, slice_weights, touches_nothing
from nasvit.pruning.families import FAMILIES, BlockLayout, Layout, UnsupportedModelError
from nasvit.pruning.files import Form, build_form, form_from_dict, form_of, load, read_form, save
from nasvit.pruning.importance import CRITERIA, Importance, importance
from nasvit.pruning.kept import TokenMap, kept_tokens
from nasvit.pruning.plan import OPERATORS, BlockPlan, Plan, PlanError, Source
from nasvit.pruning.to_timm import to_timm
from nasvit.pruning.uniform import uniform

__all__ = ["CRITERIA", "FAMILIES", "OPERATORS", "BlockLayout", "BlockPlan", "Dense", "Form", "Importance", "Layout", "Plan", "PlanError",
           "Source", "TokenMap", "UnsupportedModelError", "build", "build_form", "check", "dense_plan", "form_from_dict", "form_of",
           "importance", "input_shape", "kept_tokens", "layout_of", "load", "prepare", "read_form", "save", "set_fused", "slice_weights",
           "to_timm", "touches_nothing", "uniform"]
