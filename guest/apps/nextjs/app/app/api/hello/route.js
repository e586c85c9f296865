export const dynamic = "force-dynamic";

export function GET(request) {
  return Response.json({ host: request.headers.get("host"), path: new URL(request.url).pathname });
}
