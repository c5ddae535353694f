"""The web console: pages for people, and the small HTTP API that they use (docs/reference/http-api.md).

browser ─▶ app ── access (who is it, may they) ▸ api | pages ──▶ the client's verbs
             └─▶ watcher: one background task polls Redis and pushes what changed to every open page

It needs the extra ``console``; nothing else of the package imports it before `rebalance console` is called.
"""
