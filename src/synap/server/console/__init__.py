"""The console: the web page at `/` that shows the service's data and activity, and lets people change it.

`pages` serves the page and signs people in, `sessions` has who is signed in, `bundle/` is built by `npm run build` from
the sources in `console/`. The page uses the public WebSocket API.
"""
