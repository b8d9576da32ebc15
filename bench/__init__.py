"""What Trestle costs, counted and timed beside Docker's own bridge (script/bench)."""
