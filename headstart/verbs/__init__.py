"""The verbs beside training: check, evaluate, compare, export, report, retrain."""
