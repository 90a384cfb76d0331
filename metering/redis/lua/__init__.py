"""The Lua scripts of the meter; ``metering.redis.scripts`` loads them by name."""
