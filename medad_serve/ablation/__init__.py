"""An ablation: named variants of one training, each a run, in one table with plots."""

from medad_serve.ablation.plan import Plan, Variant, ablation_path, make_plan
from medad_serve.ablation.study import Ablation, Row

__all__ = ["Ablation", "Plan", "Row", "Variant", "ablation_path", "make_plan"]
