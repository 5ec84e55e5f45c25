"""A text pipeline: an aiohttp application, a queue in SQLite, and two kinds of workers.

    python -m examples.aiohttp_app
    curl --data-binary @README.md http://127.0.0.1:8080/documents
    curl http://127.0.0.1:8080/documents/1
    curl http://127.0.0.1:8080/
    curl -X POST http://127.0.0.1:8080/stop

``extract`` workers find the keywords of a document, ``summarise`` workers then the sentence
that has most of them.  Kill any of them while it works, ``kill -9`` included: its job is done
again, and every result is there once.  With ``--database PATH`` the queue outlives the service.

    __main__  the application: HTTP, and which workers there are
    pipeline  what the workers run, and the queue; they do not import aiohttp
"""
