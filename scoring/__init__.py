"""The real-time inspector: ViCLIP, the scorer protocol, the failure detector."""
