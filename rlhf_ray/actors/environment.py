"""Environment of an actor's process: what OpenMP and glibc read once, when they start."""


def process_environment(threads: int) -> dict[str, str]:
    """For an actor that computes on `threads` cores in turn with others.

    OpenMP: Ray sets OMP_NUM_THREADS=1 by itself, and waiting threads that spin would slow everybody else down by a
    factor of ten. glibc: freed blocks would go back to the kernel, and every pass and sync would fault their pages in
    anew (70,000 faults in a reference pass of 9,500 tokens); so they are kept, up to blocks of 1 GiB.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    }
