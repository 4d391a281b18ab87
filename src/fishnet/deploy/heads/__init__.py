"""What the export of each kind of head needs: its description, its graphs, and how its answers are compared."""
