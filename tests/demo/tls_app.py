import hashlib, ssl, sys, urllib.error, urllib.request

# The site's own CA, and no other.
context = ssl.create_default_context(cafile="/app/ca.pem")

def certificate(response):
    return hashlib.sha256(response.fp.raw._sock.getpeercert(True)).hexdigest()

for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, context=context, timeout=10) as r:
            print(url, r.status, certificate(r), r.read().decode().strip(), sep="\t")
    except urllib.error.HTTPError as e:
        print(url, e.code, certificate(e.fp), e.reason, sep="\t")
    except OSError as e:
        print(url, "failed", "", e, sep="\t")
