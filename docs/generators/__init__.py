"""What the site has beside docs/*.md: pages made from their owners, and links that lead somewhere on the site, too."""
