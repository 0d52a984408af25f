"""Tests of the benchmarks, and of fxprune on their networks."""
