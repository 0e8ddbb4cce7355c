"""Explorers for JupyterLab around the figures: plain state, small overlays, a static twin of every
view.
"""
