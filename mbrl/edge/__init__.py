"""The edge of reach: states that imagination bootstraps from and never trains (RAVL, Sims et al. 2024)."""
