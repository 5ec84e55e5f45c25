"""Code search: an aiohttp service whose work is done by background workers.

    python -m examples.codesearch            index the standard library, serve http://127.0.0.1:8080
    python -m examples.codesearch --once     index it, run one query, and end

Three kinds of workers share one SQLite database, and nothing else:

    plan      static; walks the tree, divides it into shards, and ends
    index-N   dynamic; each indexes one shard in one transaction, and ends
    watch     restarted whenever it ends; re-indexes what changes

Each may be killed at any moment, ``kill -9`` included: the supervisor starts it again, and what
it had in hand is done once, or not at all and then again.

    __main__  options  crew      the main process: command line, what to do, who does it
    service   page               the main process: HTTP
    plan      index    watch     what the workers run
    tree      store    find      the files, the database, queries
"""
