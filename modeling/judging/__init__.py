"""Members and judges: folders, loading, canary battles, passes, cascades, calibration, pseudo-labels."""
