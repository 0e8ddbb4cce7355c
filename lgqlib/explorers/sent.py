"""A figure that reaches the browser with its data."""

import plotly.graph_objects as go


class SentWhole(go.FigureWidget):
    """A FigureWidget whose data are in the message that creates it.

    plotly's own opens its channel first and sends the data after it, as a change; a browser busy
    enough to draw in between, or to miss the change, shows an empty figure for good.
    """

    _built = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._built = True
        self.open()

    def open(self) -> None:
        """Open the channel to the browser, once everything is there to be sent."""
        if self._built:
            super().open()
