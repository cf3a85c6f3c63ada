"""Speed against onnxruntime, outside the test suite: ``python -m tests.benchmarks.gemm``."""
