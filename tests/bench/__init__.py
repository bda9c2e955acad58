"""How fast is a sweep? The same grid by hooks and by nnsight, one cell at a time and batched, beside the floor.

    python -m tests.bench                     the shipped checkpoint, and a random one of a middle size
    python -m tests.bench --size 1b           Llama-3.2-1B's shape, for a GPU

One process, one table a size, medians. A variant whose numbers differ from the others' ends it with an error.
"""
