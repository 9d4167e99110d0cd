"""The console: the web page at `/` that shows what a service holds and does, and lets people change it.

`pages` serves the page and signs people in, `sessions` keeps who is signed in, `bundle/` is what `npm run build` in
`console/` makes of the sources there. Its data comes over the same WebSocket that everybody may use.
"""
