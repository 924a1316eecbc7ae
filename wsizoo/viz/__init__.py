"""Heatmaps, GeoJSON and the HTML report."""
