"""The benchmark's parts: its rows, our stages, the PyTorch twin, the measuring."""
