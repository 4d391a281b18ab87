"""Pictures and pages for people: curves, predictions, confusion, gradient flow, the fish itself, report.html."""
