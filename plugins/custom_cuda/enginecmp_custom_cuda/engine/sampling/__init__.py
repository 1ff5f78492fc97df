"""From residuals to ids."""
