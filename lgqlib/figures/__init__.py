"""Plotly figures: data in, `go.Figure` out; one template, one color per method (`style`)."""
