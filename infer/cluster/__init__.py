"""The same readers on many machines: Ray Data reads files, workers answer, each part of the output lands in one step.

run (the road) -> inputs, slices (who reads what) -> pool, worker -> receipts, part_folder. Nothing here is imported
where runner=local. Knows rows, parts and workers; never how a row is answered.
"""
