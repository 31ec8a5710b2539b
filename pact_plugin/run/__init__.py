"""What a run says of itself: metrics, receipt, verification."""
