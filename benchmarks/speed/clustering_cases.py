"""What is measured of clustering, in a module of its own.

To import `benchmarks.clusters.run` sets `OMP_NUM_THREADS` to 1, which TensorFlow reads as well.
"""

from __future__ import annotations

from benchmarks.clusters.run import balanced, mini_batch_k_means, skewed_vectors, tightness
from benchmarks.speed.measure import Case, Claim, Contestant
from benchmarks.speed.sizes import SEED, WIDTH, Sizes


def clustering(sizes: Sizes) -> list[Case]:
    """Clusters of equal size beside clusters of any size, both on one thread.

    OpenMP's threads wait for each other where something else holds a core: with two of them
    `MiniBatchKMeans` took 0.7 s once, as with one, and 28 s another time. *squared distance* is the
    mean squared distance of a row to the mean of its cluster; equal sizes cost some of it, see
    [clusters](../clusters/README.md), whose rows and calls these are.
    """
    vectors = skewed_vectors(sizes.rows, SEED)
    k = -(-sizes.rows // sizes.cluster_size)
    methods = {"MiniBatchKMeans": mini_batch_k_means, "balanced_clusters": balanced}
    base, ours = methods
    return [
        Case(
            title=f"{sizes.rows:,} rows of width {WIDTH}, {k} clusters",
            contestants=[
                Contestant(n, lambda m=method: lambda: m(vectors, k, SEED))
                for n, method in methods.items()
            ],
            claims=[Claim(ours, base)],
            turns=min(sizes.turns, 9),
            warm_up=1,
            facts=lambda results: {
                n: {"squared distance": tightness(vectors, labels)[1]}
                for n, labels in results.items()
            },
        )
    ]
