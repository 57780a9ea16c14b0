"""What more workers bring: measured, counted and on paper."""
