"""Several ways of answering, on the same rows, side by side: one table, one page.

run (the road) -> ways, way (each in a process of its own) -> rows, table -> figures -> report.
"""
