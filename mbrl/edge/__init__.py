"""The edge of reach (RAVL, Sims et al. 2024): two small problems where a perfect model is not enough."""
