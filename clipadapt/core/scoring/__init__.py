"""Numbers from scores and labels: metrics, confidence intervals and tests, and calibration."""
