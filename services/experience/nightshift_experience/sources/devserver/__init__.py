"""The DevServer's run exports, each module one thing that must be known about them."""
