"""A trained run as an HTTP service: recommendations, changes of the catalogue, a page to look at.

    limits      what a request may ask for at most
    schemas     requests and answers, as OpenAPI shows them
    tables      what the run knows of its queries, items and histories
    deployment  which export is in service, how another takes its place, what was changed since
    answers     a batch of requests -> their answers, from one export
    batcher     concurrent requests -> batches, one at a time, in a thread
    guards      who may ask, and how much they may send
    metrics     what Prometheus reads
    routes, app the endpoints
    page/       the page at `/`
    server      the process
    command     `tfrs-negatives serve`

Upserts and deletions of items live in the memory of the process: an export that takes over finds
them applied to it as well, a restart forgets them.
"""
