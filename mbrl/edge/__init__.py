"""The edge of reach: states that imagination bootstraps from and never trains."""
