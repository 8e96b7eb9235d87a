"""Greets in a URL-safe way; `slugify` comes from requirements.txt."""

from slugify import slugify


def handler(request):
    name = request.query.get("name", "World of Functions")
    print(f"greeting {name}")
    return {"hello": name, "slug": slugify(name)}
