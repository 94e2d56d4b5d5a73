"""A trained run as an HTTP service: recommendations, changes of the catalogue, a page to look at.

    schemas     requests and answers, as OpenAPI shows them, and how much may be asked for
    tables      what the run knows of its queries, items and histories
    deployment  which export is in service, how another takes its place, what was changed since
    answers     concurrent requests -> batches, one at a time -> their answers, from one export
    metrics     what Prometheus reads
    routes      the endpoints
    app         who may ask and how much they may send; errors; what runs beside the endpoints
    page/       the page at `/`
    server      the process
    command     `tfrs-negatives serve`

Upserts and deletions of items live in the memory of the process: an export that takes over finds
them applied to it as well, a restart forgets them.
"""
