"""papermill's engine `lgqlib`: `papermill --engine lgqlib ...` leaves plotly's JavaScript out.

papermill's own stores the state of widgets, 5 MB of code that a figure without a kernel never uses.
"""

from papermill.engines import NBClientEngine


class Light(NBClientEngine):
    """Execute a notebook as papermill does, and store no widget's state."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        options["store_widget_state"] = False
        return super().execute_managed_notebook(nb_man, kernel_name, **options)
