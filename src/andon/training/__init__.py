"""From good pictures to a calibrated bundle."""
