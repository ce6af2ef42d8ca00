"""What a step costs: contenders trained in turn, timed and measured side by side."""
