"""What a study amounts to: statistics, tables, figures, and the page that shows them."""
