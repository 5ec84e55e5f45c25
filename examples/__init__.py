"""Programs that show how aiobgw is used; each runs by itself."""
