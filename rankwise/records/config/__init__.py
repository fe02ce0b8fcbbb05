"""The study file's sections as checked, frozen data."""
