"""What people look at: pages of pictures, plots and tables."""
