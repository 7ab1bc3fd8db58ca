"""From a run to what is known of it: its export, its scores on unseen patients, every figure and the report."""

from medad_serve.evaluation.exporting import export_run, make_bundle
from medad_serve.evaluation.maps import full_size, maps_of
from medad_serve.evaluation.measures import measure
from medad_serve.evaluation.outcome import Outcome, evaluate, evaluate_all, facts, plots
from medad_serve.evaluation.scoring import Scored, score, score_rows
from medad_serve.evaluation.studies import Studied, study
from medad_serve.evaluation.subject import Subject, beside, open_subject

__all__ = [
    "Outcome",
    "Scored",
    "Studied",
    "Subject",
    "beside",
    "evaluate",
    "evaluate_all",
    "export_run",
    "facts",
    "full_size",
    "make_bundle",
    "maps_of",
    "measure",
    "open_subject",
    "plots",
    "score",
    "score_rows",
    "study",
]
