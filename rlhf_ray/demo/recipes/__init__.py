"""What the recipes in `configs/` name: their rewards, how they read a dataset's rows, and their tiny variants."""
