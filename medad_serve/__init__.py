"""Train, export and serve medical-imaging anomaly detectors."""

__version__ = "0.1.0"
