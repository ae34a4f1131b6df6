"""Many runs: grids, tables, figures."""
